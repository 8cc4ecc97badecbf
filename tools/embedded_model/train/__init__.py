"""How the embedded model and its adapters were trained. Needs the ``train`` extra; nothing at run time imports it."""
