"""How answers look: HTML, charts, colours, handlers of events."""
