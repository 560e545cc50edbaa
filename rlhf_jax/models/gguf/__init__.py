"""GGUF files, as llama.cpp and its relatives keep models -> Hugging Face folders."""
