// What is missing for somebody who does not see the page.
() => {
  const problems = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const named = (node) => node.getAttribute("aria-label") || node.getAttribute("aria-labelledby") || node.textContent.trim();
  if (!document.documentElement.lang) problems.push("no language");
  if (!document.title) problems.push("no title");
  if (all("h1").length !== 1) problems.push(`${all("h1").length} h1`);
  if (all("main").length !== 1) problems.push("not one main");
  let level = 0;
  for (const heading of all("h1, h2, h3, h4")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) problems.push(`heading skips a level: ${heading.textContent}`);
    if (!heading.textContent.trim()) problems.push("an empty heading");
    level = own;
  }
  for (const image of all("img")) if (!image.hasAttribute("alt")) problems.push(`no alt: ${image.src}`);
  for (const drawn of all("svg, canvas")) {
    if (drawn.getAttribute("role") !== "img" || !named(drawn)) problems.push(`a picture without a name: ${drawn.id}`);
  }
  for (const control of all("a, button, summary, [role=region], section, nav")) {
    if (!named(control)) problems.push(`no name: ${control.outerHTML.slice(0, 80)}`);
  }
  for (const input of all("input, select, textarea")) if (!input.labels.length) problems.push(`no label: ${input.name}`);
  for (const link of all("[aria-labelledby]")) {
    if (!document.getElementById(link.getAttribute("aria-labelledby"))) problems.push(`label not found: ${link.id}`);
  }
  for (const table of all("table")) if (!table.querySelector("th[scope=col]")) problems.push("a table without headings");
  const ids = all("[id]").map((node) => node.id);
  if (new Set(ids).size !== ids.length) problems.push("an id twice");
  return problems;
}
