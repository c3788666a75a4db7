"""Mail that comes back: loopback copies. Bounces will have their door here."""
