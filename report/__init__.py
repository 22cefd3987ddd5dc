"""Many runs in one report: tables beside the papers' numbers, and a page to look at."""
