"""What clients ask for: completions, chats, models and tokens, from the body to the answer."""
