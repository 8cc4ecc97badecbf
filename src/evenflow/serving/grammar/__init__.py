"""What an answer may say next: constraints compiled to grammars, and the tokens that each allows. No torch."""
