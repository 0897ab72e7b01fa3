"""Exchange with SAELens, sparsify and circuit-tracer: exact, or refused with the reason."""
