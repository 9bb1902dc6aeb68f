"""Checks of a page in a browser: contrast, focus and the reach of the Tab key."""

from __future__ import annotations

from typing import Any

# WCAG 2 AA: 4.5 to 1, and 3 to 1 for large text; what is disabled is exempt.
UNREADABLE = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 * 255 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parts(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest(":disabled")) continue;
    const style = getComputedStyle(element);
    const colour = parts(element.closest("svg") ? style.fill : style.color);
    const [dark, light] = [colour, behind(element)].map(luminance).sort((a, b) => a - b);
    const [size, bold] = [parseFloat(style.fontSize), style.fontWeight >= 600];
    const enough = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < enough) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""

CONTROLS = """() => {
  const named = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
  const ofAnother = (e) => e.type === "radio" && !e.checked;  // arrows choose within a group
  window.controls = [...document.querySelectorAll(named)]
    .filter((e) => e.checkVisibility() && !e.disabled && !ofAnother(e));
  window.shown = new Map();
  document.addEventListener("focusin", ({target}) => {
    const outlined = [target, target.closest("label"), target.nextElementSibling].some((e) => {
      const style = e && getComputedStyle(e);
      return style && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    });
    shown.set(target, outlined);
  });
  document.activeElement.blur();
  return controls.length;
}"""
MISSED = "() => controls.filter((e) => !shown.get(e)).map((e) => e.outerHTML.slice(0, 120))"


def unreadable(page: Any) -> list[str]:
    """Visible texts with too little contrast."""
    found: list[str] = page.evaluate(UNREADABLE)
    return found


def unreachable(page: Any) -> list[str]:
    """Visible controls that Tab does not reach, or that do not show the focus."""
    count = page.evaluate(CONTROLS)
    assert count > 0
    for _ in range(count + 5):  # some browsers also stop at what scrolls
        page.keyboard.press("Tab")
    missed: list[str] = page.evaluate(MISSED)
    return missed
