"""Texts that would break a page that trusts its names."""

PAYLOADS = [
    "</script><img src=x onerror=alert(1)>",
    "<svg onload=alert(2)>",
    "<!--<script>alert(3)</script>",
    "]]><script>alert(4)</script>",
    '"onmouseover=alert(5) x="',
    "'onfocus=alert(6) autofocus='",
    "javascript:alert(7)",
    "{{ 7 * 7 }}{% raw %}",
    "${alert(8)}`",
    "</style><style>*{display:none}",
    "</title><base href=http://example.org>",
    "</td></tr></table><h1>out",
    "&lt;b&gt; &amp;copy; &#x41;",
    "a|b `c` *d* _e_ $f$ #g % 1",
    "\u202eright to left\u202c",
    "\u2028line\u2029break",
    "emoji \U0001f9e0\u200d\U0001f525 and \u00e9\u0301",
    "constructor",
    "__proto__",
    "long " * 40,
]
