"""Tools that know nothing of defences: files, images, statistics, processes. Whatever knows a stage lives elsewhere."""
