"""The page people look at, on the manager's HTTP address. It shows what the API says and asks only what the API can."""
