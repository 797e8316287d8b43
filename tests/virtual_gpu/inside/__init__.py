"""What runs in a process under the virtual GPU; imported there, never by the tests themselves."""
