"""How the embedded model and its adapters are made; not part of the wheel.

``tidewick`` draws the text, ``train`` trains on it and writes what lies in ``src/evenflow/demo/assets``.
"""
