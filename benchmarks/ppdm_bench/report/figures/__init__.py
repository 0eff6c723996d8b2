"""Figures: ``style`` has the common look, each other module draws one kind."""
