"""Plain torch: what a sub-bit convolution is, without compiled code."""
