"""How every command starts, reads its words, prints help and ends with an error."""
