"""Groups of ranks and the links between them: who carries bytes, how slowly, and what it took."""
