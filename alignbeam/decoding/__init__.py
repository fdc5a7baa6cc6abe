"""Prime, mix, complete: requests become finished beams."""
