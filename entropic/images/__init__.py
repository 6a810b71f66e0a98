"""Networks, images and the distances between them."""
