"""The torch.library operators, and the functions that call them."""
