"""Searches compared on recorded text: drafts once, replays under any search on any machine."""
