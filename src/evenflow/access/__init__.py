"""Who may ask and who pays: the file of clients and the keys it holds. Knows no HTTP framework and no engine."""
