"""What each stage trains: one file per stage, one `Task` each."""
