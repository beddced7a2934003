"""Other people's products on a GPU, each behind the members of `gpu.product.Product`."""
