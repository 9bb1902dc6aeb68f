"""Small pieces that nothing above needs to know: files, hashes, seeded streams, metrics."""
