"""Speech, noise and rooms: from files or a synthesiser to verified stores on disk."""
