"""What runs OpenGate elsewhere, and programs that check it. Nothing here is imported by the gateway."""
