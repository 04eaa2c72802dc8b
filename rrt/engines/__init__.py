"""Search engines whose candidates are reranked. Each module wants the package of its engine, and is imported alone."""
