"""Parts of a page: sections, HTML, figures and images."""
