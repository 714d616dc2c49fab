"""Networks that learn their sampling together with the reconstruction."""
