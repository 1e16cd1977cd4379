"""What all assets share: owners, and groups named so that the UI lists them in the data's order."""

OWNERS = ["team:kinject"]

CORPUS_GROUP = "a_corpus"
EXAMS_GROUP = "b_exams"
AUGMENTATION_GROUP = "c_augmentation"
RETRIEVAL_GROUP = "d_retrieval"
TRAINING_GROUP = "e_training"
ANSWERS_GROUP = "f_answers"
RESULTS_GROUP = "g_results"
FIGURES_GROUP = "h_figures"
