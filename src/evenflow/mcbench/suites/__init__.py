"""Named sets of runs and studies, and the page that reports them."""
