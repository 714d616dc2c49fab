"""Deep unfolding networks: the gradient step is the operator's, the proximal step is learned."""
