"""What measures the claims, one module a subject; each function declares its claims."""
