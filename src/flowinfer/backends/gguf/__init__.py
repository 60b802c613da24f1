"""Backend `gguf`: models in GGUF files, computed by llama.cpp."""
