"""Decoder models from ordinary Hugging Face folders."""
