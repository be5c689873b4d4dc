"""Tables first, figures as views of tables, one self-contained page. The only place that imports matplotlib."""
