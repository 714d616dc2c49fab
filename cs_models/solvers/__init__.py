"""Training-free reconstruction: greedy, thresholding, convex and plug-and-play solvers, and coefficients learning."""
