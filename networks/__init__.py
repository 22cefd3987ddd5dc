"""Networks: image -> NetworkOutput."""
