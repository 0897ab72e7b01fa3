// What is wider than the screen can be reached with the keyboard, and only while it is wider.

/** For an element that scrolls by itself: in the tab order just when there is something to scroll. */
export function scrollable(node: HTMLElement): { destroy: () => void } {
  const sized = new ResizeObserver(() => {
    if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
  });
  for (const one of [node, ...node.children]) sized.observe(one);
  return { destroy: () => sized.disconnect() };
}
