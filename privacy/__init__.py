"""What leaves a device, and under which guarantee; no other room of the project is imported here."""
