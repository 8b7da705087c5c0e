"""Examples of the tests of the page."""

EXAMPLES = [
    ("My card was charged twice", "billing"),
    ("Refund the invoice please", "billing"),
    ("The app crashes when I open settings", "bug"),
    ("Blank page after the login", "bug"),
    ("How do I change my name?", "account"),
]
LINES = "\n".join(f"{text}, {label}" for text, label in EXAMPLES)
