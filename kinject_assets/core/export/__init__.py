"""What leaves the lake for other tools: lm-eval's layout, a data set, a model with its card."""
