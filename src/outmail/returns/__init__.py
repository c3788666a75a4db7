"""Mail that comes back: loopback copies. (Bounces will come here, too.)"""
