"""What a person looks at: every figure of the kit."""
