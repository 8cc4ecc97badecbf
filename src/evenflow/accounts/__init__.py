"""Who used what: rows by hour, client and adapter, kept in a database beside the server."""
