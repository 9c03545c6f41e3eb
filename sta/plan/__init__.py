"""What a recipe will take: parameters, memory, operations, hours and disk, before anything is trained."""
