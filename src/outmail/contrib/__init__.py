"""outmail in other frameworks. The rest of outmail imports nothing from here."""
