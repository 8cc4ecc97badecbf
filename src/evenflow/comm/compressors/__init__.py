"""The compressors: how a tensor becomes bytes, and bytes a tensor again."""
