"""How a page is made: sections, HTML, figures, pictures."""
