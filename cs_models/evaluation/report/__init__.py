"""Reports on results: tables, statistics, figures, cards of the zoo, and Weights & Biases."""
