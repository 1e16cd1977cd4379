"""Finding chunks for questions: encoders, exact inner-product search, and how often it is right."""
