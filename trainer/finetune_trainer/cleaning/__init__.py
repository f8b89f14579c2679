"""What is wrong with samples: found before they are divided, told with the reason, and dropped if that is asked for."""
